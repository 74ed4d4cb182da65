"""Check and preview a wording file: `python -m xmlib.data.sample fr` or `python -m xmlib.data.sample fr NL US`.

Prints everything that is wrong with `text/fr.yaml`; if nothing is, every sentence and question in it, filled in for two
territories (or those named), in all variants.
"""

import argparse

import yaml

from .facts import facts
from .generate import fill, objects
from .wording import FOLDER, QUESTIONS, REVERSE, SENTENCES, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lang")
    parser.add_argument("territories", nargs="*", default=["CH", "US"])
    args = parser.parse_args()
    path = FOLDER / f"{args.lang}.yaml"
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    if wrong := problems(text, args.lang):
        print(f"{path.name}: {len(wrong)} problems", *wrong, sep="\n  ")
        return 1
    shown = {kind: [fact for fact in facts().values() if fact.kind == kind] for kind in SENTENCES}
    for kind, known in shown.items():
        wanted = [fact for fact in known if fact.territory in args.territories] or known[:1]
        print(f"\n{kind}")
        for fact in wanted:
            slots = (("territory", ("territory", fact.territory)), *fact.slots)
            print(*(f"  {fill(t, slots, args.lang)}" for t in text["sentences"][kind]), sep="\n")
    for key in QUESTIONS:
        print(f"\n{key}?")
        for territory in args.territories:
            slots = (("territory", ("territory", territory)),)
            print(*(f"  {fill(t, slots, args.lang)}" for t in text["questions"][key]), sep="\n")
    for key, slot in REVERSE.items():
        examples = [value for k, value, _ in objects() if k == key]
        print(f"\n{key}?")
        for value in examples[:: max(1, len(examples) // 2)][:2]:
            print(*(f"  {fill(t, ((slot, value),), args.lang)}" for t in text["reverse"][key]), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
