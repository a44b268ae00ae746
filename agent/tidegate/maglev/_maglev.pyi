# SPDX-License-Identifier: Apache-2.0
from tidegate.model.generation import Slots

def fill(table: Slots, weight: Slots, turns: Slots, offset: Slots, skip: Slots, /) -> None: ...
