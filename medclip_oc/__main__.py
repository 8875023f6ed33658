"""`python -m medclip_oc`: the commands, one line each."""

import sys

COMMANDS = {
    "tools/make_shards.py": "pack images and captions into tar shards, audit and verify them",
    "-m medclip_oc.train": "fine-tune a CLIP model (torchrun -m ... for several processes)",
    "-m medclip_oc.evaluate": "retrieval over held-out pairs: recall, ranks, intervals",
    "-m medclip_oc.report": "a page on a run: curves, figures, best and worst retrievals",
    "-m medclip_oc.zeroshot": "rank candidate captions for images, or search an index",
    "-m medclip_oc.embed": "make an index of a set of pairs, to search",
    "-m medclip_oc.export": "a checkpoint as a folder for open_clip, ONNX or transformers",
    "-m medclip_oc.app": "a local page that ranks captions and searches",
}

if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["-h"], ["--help"]):
        print(
            f"python -m medclip_oc lists commands; try python -m medclip_oc.{sys.argv[1]}",
            file=sys.stderr,
        )
        sys.exit(2)
    for name, purpose in COMMANDS.items():
        print(f"python {name:<23} {purpose}")
    print("Each has --help.")
