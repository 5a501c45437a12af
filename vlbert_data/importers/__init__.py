"""Features that people already have, one module per foreign format. Promise: nothing that is read is executed."""
