# The bindings have no type information: anything goes.
from typing import Any

def __getattr__(name: str) -> Any: ...
