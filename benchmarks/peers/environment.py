"""The environment of the peers: where it is, what is installed in it, and how it is made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT = HERE.parents[1] / ".peers"  # git does not see it
VARIABLE = "PALAVER_PEERS"
REQUIREMENTS = HERE / "requirements.txt"
ADAPTERS = HERE / "adapters"

# What each peer is called here, as `adapters/{name}_peer.py`, and the distribution that it comes with.
PEERS: Mapping[str, str] = {
    "langgraph": "langgraph-checkpoint-sqlite",
    "openai_agents": "openai-agents",
    "google_adk": "google-adk",
    "autogen": "autogen-agentchat",
}


def folder() -> Path:
    """Where the environment is, or is to be."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def python(env: Path) -> Path:
    """The interpreter of an environment."""
    return env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def installed(env: Path) -> dict[str, bool]:
    """Which of the peers the environment has."""
    if not python(env).exists():
        return dict.fromkeys(PEERS, False)
    code = "from importlib.metadata import distributions as all; print(*[d.metadata['Name'] for d in all()])"
    done = subprocess.run([python(env), "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    names = {name.lower().replace("_", "-") for name in done.stdout.split()}
    return {peer: distribution in names for peer, distribution in PEERS.items()}


def make(env: Path) -> dict[str, bool]:
    """Make the environment and install what can be installed, from pip's own index; which peers it has then.

    One that cannot be installed does not keep the others out: then they are installed one by one.
    """
    if not python(env).exists():
        subprocess.run([sys.executable, "-m", "venv", env], check=True)
    pip = [str(python(env)), "-m", "pip", "install", "--quiet"]
    if subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=False).returncode:
        lines = REQUIREMENTS.read_text().splitlines()
        for line in lines:
            if line and not line.startswith("#"):
                subprocess.run([*pip, line], check=False)
    return installed(env)
