"""One command a file: each defines `command`, and imports more than click only when it runs."""
