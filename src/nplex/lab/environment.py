"""What a run ran on: versions, machine, commit. No names of users or folders."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """Versions of what computes, the machine's processor and threads, the commit of the source, the time."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("nplex", "torch", "accelerate", "safetensors", "tokenizers")},
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name, and its widest vectors, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    vectors = next((name for name in ("avx512f", "avx2") if name in fields.get("flags", "")), "no AVX2")
    return f"{fields.get('model name', 'unknown')} ({vectors})"


def _commit() -> str:
    """The commit of the source, with a plus where files differ from it; unknown outside its own repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        for arguments in (
            ["ls-files", "--error-unmatch", Path(__file__).name],
            ["describe", "--always", "--dirty=+"],
        ):
            done = subprocess.run([*git, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
