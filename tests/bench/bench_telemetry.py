# SPDX-License-Identifier: Apache-2.0
"""What telemetry costs the agent; each part has a module of its own beside this one."""

import sys

import flow_throughput
import scrape_cost

if __name__ == "__main__":
    code = scrape_cost.main()
    flow_throughput.main()
    sys.exit(code)
