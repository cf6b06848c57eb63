"""Parts that all weight formats share; they import no command."""
