"""Text and figures from fitted models: completions, chat, the files a worker needs."""
