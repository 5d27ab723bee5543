"""Compares initializations of MiniLM: PEFT's EVA, CorDA, PiSSA and OLoRA, and those of cntlora, from the same texts.

    python benches/peers.py --model FOLDER --texts FILE

FOLDER holds MiniLM as published. FILE has one text per line, or is JSON with a list "train" of texts or of pairs of a text and a label.
Each case runs in a process of its own, all cases in turn, and the fastest run of each counts. All methods have their defaults. Wall time
starts when the model and the batches are in memory, and includes the forward passes. Peak memory is what the process needs beyond that.
Run it alone on the machine.

A second table compares the forward pass with and without the recorder, for MiniLM and for a Llama-shaped stack of width 2048.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

TARGETS = ["query", "key", "value", "dense"]
PEERS = {"eva": "eva", "corda": "corda-ipm", "pissa": "pissa", "olora": "olora"}
CASES = ["forward passes", *(f"peft {name}" for name in PEERS), *(f"cntlora {name}" for name in ["cntlora", *PEERS.values()])]
# Least ratio of the time of PEFT to that of cntlora.
WANTED = {"eva": 4, "corda": 15, "pissa": 1, "olora": 1}
# Largest ratio of the time of a recorded forward pass to that of a bare one.
SLOWEST = 2


def texts_of(path, count):
    """Returns the texts of a file."""
    content = pathlib.Path(path).read_text(encoding="utf-8")
    if path.endswith(".json"):
        texts = [entry if isinstance(entry, str) else entry[0] for entry in json.loads(content)["train"]]
    else:
        texts = [line for line in content.splitlines() if line.strip()]
    return texts[:count]


def model_and_batches(args):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = transformers.AutoModel.from_pretrained(args.model, dtype=torch.float32, add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    texts = texts_of(args.texts, args.count)
    parts = (texts[first : first + args.batch_size] for first in range(0, len(texts), args.batch_size))
    return model, [dict(tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=128)) for part in parts]


def run_all(model, batches):
    import torch

    # PEFT's CorDA changes tensors of the pass afterwards, which inference mode does not allow.
    with torch.no_grad():
        for batch in batches:
            model(**batch)


def initialize(case, args, model, batches):
    """Runs one case on a model and batches in memory."""
    import cntlora
    from peft import LoraConfig, get_peft_model, initialize_lora_eva_weights

    family, _, name = case.partition(" ")
    plain = dict(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS)
    if case == "forward passes":
        run_all(model, batches)
    elif family == "cntlora":
        peft_model = get_peft_model(model, LoraConfig(**plain), low_cpu_mem_usage=True)
        loader = batches if name in ("cntlora", "eva", "corda-ipm") else None
        cntlora.initialize_lora_weights(peft_model, loader, method=name, progress=False)
    elif name == "eva":
        peft_model = get_peft_model(model, LoraConfig(**plain, init_lora_weights="eva"), low_cpu_mem_usage=True)
        initialize_lora_eva_weights(peft_model, batches, show_progress_bar=False)
    elif name == "corda":
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda

        config = LoraConfig(**plain, init_lora_weights="corda", corda_config=CordaConfig(corda_method="ipm"))
        # PEFT's CorDA takes one example at a time.
        rows = [(batch, row) for batch in batches for row in range(len(batch["input_ids"]))]
        singles = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for batch, row in rows]
        preprocess_corda(model, config, run_model=lambda: run_all(model, singles))
        get_peft_model(model, config)
    else:
        get_peft_model(model, LoraConfig(**plain, init_lora_weights=name))


def memory():
    """Returns the largest memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def one_case(args):
    """Runs a case in this process, and prints its time and memory."""
    model, batches = model_and_batches(args)
    import cntlora.recorder  # noqa: F401  imports are not part of the time
    import peft  # noqa: F401

    model(**{name: tensor[:1] for name, tensor in batches[0].items()})
    print("ready", flush=True)
    before, started = memory(), time.perf_counter()
    initialize(args.case, args, model, batches)
    print(json.dumps(dict(seconds=time.perf_counter() - started, bytes=memory() - before)))


def all_cases(args):
    """Runs every case in a process of its own, and prints the table."""
    found = {case: [] for case in CASES}
    # In turn, so that a machine that becomes slower slows all of them.
    for _ in range(args.repeat):
        for case in CASES:
            found[case].append(one_run(case, args.limit))
    # The fastest run; none if one was over the limit.
    best = {case: None if None in runs else min(runs, key=lambda run: run["seconds"]) for case, runs in found.items()}
    print(f"{'case':20} {'seconds':>9} {'peak memory':>12}")
    for case, result in best.items():
        text = f"over {args.limit} s" if result is None else f"{result['seconds']:9.2f} {result['bytes'] / 2**20:8.0f} MiB"
        print(f"{case:20} {text}")
    print()
    for name, ours in PEERS.items():
        peer, own = best[f"peft {name}"], best[f"cntlora {ours}"]
        if own is None:
            print(f"{ours}: cntlora did not end within {args.limit} s")
            continue
        least = args.limit if peer is None else peer["seconds"]
        ratio, wanted = least / own["seconds"], WANTED[name]
        verdict = "as wanted" if ratio >= wanted else "TOO SLOW"
        print(
            f"{ours:10} {'at least ' if peer is None else ''}{ratio:6.1f} times as fast as PEFT's {name} (wanted: {wanted}): {verdict}",
            flush=True,
        )


def one_run(case, limit):
    """Returns the result of a process for one case; None if it is over the limit."""
    words = [sys.executable, __file__, *sys.argv[1:], "--case", case]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # The limit does not count imports and the loading of the model.
    child.stdout.readline()
    try:
        out, error = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return None
    if child.returncode != 0:
        sys.exit(f"{case} failed:\n{error}")
    result = json.loads(out.splitlines()[-1])
    print(f"{case}: {result['seconds']:.2f} s", file=sys.stderr, flush=True)
    return result


def llama_stack(width, layers):
    """Returns a model with the shape of Llama 3.2 1B but fewer layers, and batches of 2048 tokens in all."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
    )
    return LlamaModel(config).eval(), [dict(input_ids=torch.randint(0, 1000, (4, 256))) for _ in range(2)]


def recording(args):
    """Compares forward passes with and without the recorder, and prints both rates."""
    import cntlora
    import torch

    print(f"\n{'forward pass':20} {'bare tokens/s':>14} {'recorded':>10} {'times as long':>14}")
    for name, made in (("MiniLM", lambda: model_and_batches(args)), ("Llama of width 2048", lambda: llama_stack(args.width, args.layers))):
        model, batches = made()
        tokens = sum(int(batch.get("attention_mask", batch["input_ids"] * 0 + 1).sum()) for batch in batches)
        run_all(model, batches[:1])
        bare, recorded = [], []
        # In turn, so that a machine that becomes slower slows both.
        for _ in range(args.repeat):
            started = time.perf_counter()
            run_all(model, batches)
            bare.append(time.perf_counter() - started)
            started = time.perf_counter()
            with cntlora.Recorder(model), torch.no_grad():
                for batch in batches:
                    model(**batch)
            recorded.append(time.perf_counter() - started)
        ratio = min(recorded) / min(bare)
        verdict = "as wanted" if ratio <= SLOWEST else "TOO SLOW"
        print(f"{name:20} {tokens / min(bare):14.0f} {tokens / min(recorded):10.0f} {ratio:14.2f}  (wanted: at most {SLOWEST}): {verdict}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of MiniLM")
    parser.add_argument("--texts", required=True, help="file of texts")
    parser.add_argument("--count", type=int, default=1000, help="number of texts")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case, of which the fastest counts")
    parser.add_argument("--limit", type=float, default=120, help="seconds that one case may take")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; all processors by default")
    parser.add_argument("--width", type=int, default=2048, help="width of the Llama-shaped stack")
    parser.add_argument("--layers", type=int, default=4, help="layers of the Llama-shaped stack")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        one_case(args)
    else:
        all_cases(args)
        recording(args)


if __name__ == "__main__":
    main()
