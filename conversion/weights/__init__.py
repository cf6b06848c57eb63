"""Parts that all weight formats share; imports no command."""
