"""The benchmark of the ablation's blocks at toy size."""

from benchmarks.blocks import main


def test_every_block_is_measured_beside_the_papers_choice(capsys):
    sizes = ["--dim", "128", "--input-dim", "80", "--batch", "1", "--seconds", "0.5"]
    assert main([*sizes, "--repeats", "1", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.endswith(" x")}
    assert list(rows) == ["focal", "conformer", "amp", "linear", "vocos", "hifigan"]
    assert rows["focal"][4] == rows["vocos"][4] == "1.00"
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows.values())
