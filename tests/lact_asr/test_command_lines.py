"""`--help` and mistyped flags answer at once: the command lines are read without PyTorch or Transformers."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("lact_asr.inference.hybrid_asr_inference", "--ttt_recipe"),
        ("lact_asr.inference.evaluate_robustness", "--conditions"),
        ("lact_asr.inference.convert_results", "--output_format"),
        ("lact_asr.inference.feature_statistics", "--subset"),
        ("lact_asr.training.train_hybrid_asr", "--output"),
        ("lact_asr.data.check_corpus", "--subset"),
        ("lact_asr.data.make_shar", "--shard_size"),
        ("lact_asr.data.download", "--base_url"),
    ],
)
def test_help_imports_nothing_heavy(module, flag):
    code = (
        f"import sys\nfrom {module} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('heavy:', sorted({'torch', 'transformers', 'audiomentations', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert flag in result.stdout
    assert result.stdout.splitlines()[-1] == "heavy: []"
