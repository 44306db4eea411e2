"""What every section of a config is: it forbids unknown keys, and checks what is assigned to it later."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)
