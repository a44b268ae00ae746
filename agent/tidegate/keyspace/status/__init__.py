# SPDX-License-Identifier: Apache-2.0
"""What an agent writes for others: its status (ACK or NACK) and its verdicts on backends."""
