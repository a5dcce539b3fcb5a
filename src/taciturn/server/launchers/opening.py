"""The launcher that a gateway's settings name."""

from __future__ import annotations

from taciturn.errors import SpecError
from taciturn.server.launchers.local import LocalLauncher
from taciturn.server.launchers.port import Launcher
from taciturn.server.settings import Settings


def open_launcher(settings: Settings) -> Launcher:
    """Raises SpecError for a launcher that is not there."""
    if settings.launcher == "local":
        return LocalLauncher(settings.data_dir / "workspaces", settings.worker_env)
    raise SpecError(f"launcher={settings.launcher!r} is not one that is here; use local")
