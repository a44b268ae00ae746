# SPDX-License-Identifier: Apache-2.0
"""The lab: a rack in network namespaces, for the demo, the tests and anybody's first look.

`rack.Lab` is the entry. Nothing here is used by the agent, and nothing here touches an interface,
process or file that the lab did not make itself.
"""
