"""Train the golden models and write them to golden_models/.

    pip install torch scikit-learn && pip install -e .
    python tools/make_golden_models.py            # all of them, some minutes on one core
    python tools/make_golden_models.py vit-digits # one

Training is seeded and single-threaded: the same machine and library versions give the same files; another processor or
torch may round differently, and then the recorded numbers change with the weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the file runs as a program from any folder

from tools.golden import control_flow, detector, images, sequences, transformers  # noqa: E402
from tools.golden.record import Golden, write  # noqa: E402

MAKERS: dict[str, Callable[[], Golden]] = {
    "mlp-digits": images.mlp_digits,
    "cnn-digits": images.cnn_digits,
    "resnet-shapes": images.resnet_shapes,
    "mobile-sounds": images.mobile_sounds,
    "vit-digits": transformers.vit_digits,
    "encoder-moods": transformers.encoder_moods,
    "decoder-stories": transformers.decoder_stories,
    "lstm-gestures": sequences.lstm_gestures,
    "gru-words": sequences.gru_words,
    "denoiser-waves": sequences.denoiser_waves,
    "detector-shapes": detector.detector_shapes,
    "adaptive-digits": control_flow.adaptive_digits,
}


def main() -> int:
    """Parse the command line and make what it names; one line per model on standard output."""
    parser = argparse.ArgumentParser(description="Train the golden models and write their folders.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(MAKERS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "golden_models", help="folder to write to")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MAKERS]
    if unknown:
        parser.error(f"unknown model {unknown[0]}: there are {', '.join(MAKERS)}")
    for name in arguments.names or MAKERS:
        start = time.monotonic()
        print(write(MAKERS[name](), arguments.out), f"({time.monotonic() - start:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
