# SPDX-License-Identifier: Apache-2.0
"""Certificates that nobody else signed, for servers of the tests."""

import subprocess
from pathlib import Path


def self_signed(folder: Path, name: str, alternative: str) -> Path:
    """Return a certificate and its key in one file, with a common and an alternative name."""
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName={alternative}",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=60,
    )
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both
