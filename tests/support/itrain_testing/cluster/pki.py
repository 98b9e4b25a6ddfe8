"""The cluster's certificate authority (openssl): server certificates, and one client certificate per user."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DAYS = "7"
CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
{name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth, clientAuth
authorityKeyIdentifier = keyid
{alternatives}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a folder; a pair that was issued once is found again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.pair = self._pair("ca")
        if not self.pair.certificate.exists():
            self._request("ca", name="CN = itrain test cluster", section="authority", options=[])

    def server(self, name: str, hosts: Sequence[str]) -> KeyPair:
        """For a server that is reached under `hosts`, names or IPv4 addresses."""
        kinds = [f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}" for host in hosts]
        return self._issue(name, f"CN = {name}", f"subjectAltName = {', '.join(kinds)}")

    def client(self, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """Kubernetes reads the user from CN and the groups from O."""
        names = [f"{index}.O = {group}" for index, group in enumerate(groups)]
        return self._issue("user-" + "-".join([user, *groups]).replace(":", "_"), "\n".join([*names, f"CN = {user}"]))

    def _issue(self, file: str, name: str, alternatives: str = "") -> KeyPair:
        pair = self._pair(file)
        if not pair.certificate.exists():
            signed = ["-CA", str(self.pair.certificate), "-CAkey", str(self.pair.key)]
            self._request(file, name=name, section="leaf", options=signed, alternatives=alternatives)
        return pair

    def _pair(self, file: str) -> KeyPair:
        return KeyPair(certificate=self._folder / f"{file}.crt", key=self._folder / f"{file}.key")

    def _request(self, file: str, *, name: str, section: str, options: list[str], alternatives: str = "") -> None:
        pair = self._pair(file)
        config = self._folder / f"{file}.cnf"
        config.write_text(CONFIG.format(name=name, alternatives=alternatives))
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(pair.key)]
        command = ["openssl", "req", "-x509", "-config", str(config), "-extensions", section, "-days", DAYS, *key]
        done = subprocess.run(
            [*command, *options, "-out", str(pair.certificate)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"openssl cannot issue {file}: {done.stderr.strip()[-500:]}")
