"""Conversion at full size: random weights of a published architecture, imported and exported in bounded memory."""

import importlib.util

import pytest
from support.paths import ROOT

SPEC = importlib.util.spec_from_file_location("convert_benchmark", ROOT / "benchmarks" / "convert.py")


@pytest.mark.slow
def test_h14_at_336_pixels_converts_both_ways_in_bounded_memory(tmp_path):
    benchmark = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(benchmark)
    result = benchmark.measure("H/14", 336, tmp_path)  # compares the exported file with the source, byte by byte
    assert result["bytes"] > 4 * 967_906_049
    assert result["import_peak_anonymous_gib"] < 2
    assert result["export_peak_anonymous_gib"] < 2
