"""How a worker is started: one port, several ways."""

from taciturn.errors import SpecError
from taciturn.server.launchers.local import LocalLauncher
from taciturn.server.launchers.port import Launcher
from taciturn.server.settings import Settings


def open_launcher(settings: Settings) -> Launcher:
    """The launcher that the settings name. Raises SpecError for one that is not there."""
    if settings.launcher == "local":
        return LocalLauncher(settings.data_dir / "workspaces", settings.worker_env)
    raise SpecError(f"launcher={settings.launcher!r} is not one that is here; use local")
