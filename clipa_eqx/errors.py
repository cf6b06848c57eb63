"""The errors a user can cause; a script turns them into one message and exit code 2."""


class ClipaError(Exception):
    """Base of all errors that are the caller's to fix. The message says what was wrong, where, and what to do."""


class ConfigError(ClipaError, ValueError):
    """A configuration contradicts itself, the data or the machine."""


class DataError(ClipaError, ValueError):
    """Records, images, captions or vocabularies are missing, damaged or of the wrong kind."""


class ShardingError(ClipaError, ValueError):
    """A mesh does not fit the devices, or no sharding rule (or a useless one) applies to a leaf."""


class CheckpointError(ClipaError, RuntimeError):
    """A checkpoint, work folder or artefact is absent, damaged, unfinished or of another run."""


class ConversionError(ClipaError, ValueError):
    """A foreign weight file does not have the expected layout; the message lists every problem at once."""


class NonFiniteError(ClipaError, RuntimeError):
    """The loss or a parameter became NaN or infinite; the message names step, samples and last good checkpoint."""
