"""Nobody pays for a library they do not use."""

from __future__ import annotations


def test_a_library_is_imported_with_its_integration_only(run_python):
    peers = "{'pymoo', 'evox', 'evomo', 'morl_baselines', 'botorch'}"
    run_python(
        "import sys, morlfast, morlfast.integrations\n"
        f"assert not {peers} & {{name.partition('.')[0] for name in sys.modules}}"
    )
