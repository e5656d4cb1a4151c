"""One target a file or folder; its name is the backend's name."""
