"""Functions that record.py and train.py share. They load the class of the model that its checkpoint names, and batches of its inputs."""
import torch
import transformers


def add_input_options(parser):
    parser.add_argument("model", help="checkpoint folder")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--text", help="file with one example per line, for the tokenizer of the model")
    inputs.add_argument("--inputs", help=".safetensors file with the model's arguments, such as input_ids or pixel_values")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512, help="tokens of an example, with --text")


def load_model(path):
    """Loads the model in f32, as the class from which the checkpoint was saved."""
    config = transformers.AutoConfig.from_pretrained(path)
    name = (config.architectures or ["AutoModel"])[0]
    return getattr(transformers, name).from_pretrained(path, dtype=torch.float32)


def batches(args):
    """Yields the keyword arguments of the model, one batch at a time."""
    if args.inputs:
        from safetensors.torch import load_file

        tensors = load_file(args.inputs)
        count = min(len(tensor) for tensor in tensors.values())
        for first in range(0, count, args.batch_size):
            yield {name: tensor[first : first + args.batch_size] for name, tensor in tensors.items()}
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with open(args.text, encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip()]
    for first in range(0, len(lines), args.batch_size):
        part = lines[first : first + args.batch_size]
        yield dict(tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=args.max_length))
