"""Starts Ray with little memory and the deployment, says where it listens, and ends when nobody writes to it any more.

python driver.py PORT CPUS name=value… in an environment with ``ray[serve]`` and safetykit
"""

import json
import os
import sys

# Milliseconds and seconds that its parts may take to start; on few busy cores the defaults are too short.
os.environ |= {"RAY_agent_register_timeout_ms": "240000", "RAY_raylet_start_wait_time_s": "240"}

import ray
from ray import serve

from safetykit.serve.replicas import deployment

if __name__ == "__main__":
    port, cpus, *given = sys.argv[1:]
    ray.init(num_cpus=int(cpus), object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(deployment(dict(one.split("=", 1) for one in given)), route_prefix="/")
    print(json.dumps({"ray": ray.__version__, "url": f"http://127.0.0.1:{port}"}), flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
