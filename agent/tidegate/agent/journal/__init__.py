# SPDX-License-Identifier: Apache-2.0
"""What was in force when, who changed it, and what was refused: kept on disk, within a bound.

`line_format` has the values and their JSON, `replay` makes generations of them, `limits` decides
when a file ends and which ones go: those three are pure. `files` reads and writes, `writer` is the
agent's thread, `owner` answers which backend had a flow.

The journal is for people and for `tidegate rollback`; the data plane never waits for it, and
whatever is wrong with it changes nothing but what is known of the past.
"""
