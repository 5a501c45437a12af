"""Where images and captions come from. Promise: every input ends as a `SourceItem` or as a `SourceReject`."""
