"""The errors a user may meet. Promise: every message says what was found, what was expected and the next move."""


class VlbError(Exception):
    """A mistake or a mishap that a user can act on. The command line prints it as one sentence and exits with 1."""


class ConfigError(VlbError):
    """A setting, option or argument that cannot be used as given."""


class ShardError(VlbError):
    """Stored data (a shard, an index, a manifest, a corpus) that is damaged, unfinished or of another format."""


class RecordRejectedError(VlbError):
    """One input record that cannot be taken; it costs this record and never the run.

    `reason` is a short stable word group that summaries count by, such as `"undecodable image"`;
    `detail` says what exactly was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RecordRejectedError"], tuple[str, str]]:
        """Keep both fields when a worker process sends this error to its parent."""
        return type(self), (self.reason, self.detail)
