"""The reference of the operator's settings (docs/operator-settings.md): `python -m itrain_operator.settingsdoc`."""

from __future__ import annotations

from pathlib import Path

from itrain_contract.reference import AS_IN_A_POD, field_table
from itrain_operator.settings import OperatorSettings
from itrain_operator.settingsfile import DEFAULT_CONFIG, ENV_CONFIG

PAGE = Path("docs/operator-settings.md")
INTRO = f"""# The operator's settings

<!-- Generated from operator/src/itrain_operator/settings.py by `make generate`; do not edit. -->

Read at start-up from the YAML file that `{ENV_CONFIG}` names, `{DEFAULT_CONFIG}` by default; it may be
missing. A scalar is overridden by the variable of its path: `lease.renewSeconds` by `ITRAIN_LEASE_RENEW_SECONDS`. An
unknown field or a value out of bounds ends the operator at once, with the field, what was found and what is allowed.

A pod gets `extraEnv` and the preset of its node pool, and over them the `template` of the run and of the stage: scalars
replace, maps and env merge by name, tolerations add up. Between run and stage, a list of the stage's that is not empty
replaces the run's. A resource that a stage names, as request or limit, takes nothing from `defaultResources`. Ranks of
a training on several nodes connect to each other on any port: a NetworkPolicy has to allow traffic between pods with
the same label `itrain.dev/run-uid`.

"""


def settings_page() -> str:
    return INTRO + field_table("", OperatorSettings, lambda path: AS_IN_A_POD.search(path) is not None)


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
