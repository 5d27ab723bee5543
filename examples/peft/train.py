"""Trains a text classifier: a pre-trained model with a new head, and an adapter that starts from the training data.

    pip install ./python
    python examples/peft/train.py MODEL examples.jsonl --out trained

A line of examples.jsonl is {"text": "…", "label": 3}, with labels from 0.
"""
import argparse
import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

import cntlora


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model of transformers, or its name on the Hub")
    parser.add_argument("examples", help="file with one JSON object per line")
    parser.add_argument("--out", required=True, help="folder for the trained adapter")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    args = parser.parse_args()

    with open(args.examples, encoding="utf-8") as file:
        examples = [json.loads(line) for line in file if line.strip()]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = [{**tokenizer(one["text"], truncation=True, max_length=512), "labels": one["label"]} for one in examples]
    collator = DataCollatorWithPadding(tokenizer)
    base = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1 + max(one["label"] for one in examples))

    # PEFT trains the new head whole, because of the task type.
    model = get_peft_model(base, LoraConfig(r=args.rank, target_modules="all-linear", task_type="SEQ_CLS"))
    report = cntlora.initialize_lora_weights(model, torch.utils.data.DataLoader(data[:512], batch_size=8, collate_fn=collator))
    print(report)

    arguments = TrainingArguments(
        args.out, num_train_epochs=args.epochs, learning_rate=args.learning_rate, per_device_train_batch_size=8, report_to=[], save_strategy="no"
    )
    Trainer(model, arguments, train_dataset=data, data_collator=collator).train()
    model.save_pretrained(args.out)
    report.save(f"{args.out}/report.html")


if __name__ == "__main__":
    main()
