"""
What a stranger does with a published repository, in an interpreter of its own: `python hub_client.py JOB.json`.

It imports nothing of the project; HF_ENDPOINT names the Hub. Loads the repository at a tag with every Auto class, fine-
tunes a classifier, pushes it twice, and loads it at the first revision again. Prints one JSON object.
"""

import json
import sys
from pathlib import Path

SEQUENCES = ["ACGTTGCATTACGGATCCAGTACCA", "TATAAAGGCTATAAAGGC", "GGGCGCGCGGCCCGCGC", "ATATATTTTAATATAT"]


def main(job_file):
    job = json.loads(Path(job_file).read_text())
    import huggingface_hub
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    torch.set_num_threads(1)
    name, options = job["repository"], {"trust_remote_code": True}
    report = {"transformers": transformers.__version__, "huggingface_hub": huggingface_hub.__version__}
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=job["tag"], **options)
    batch = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    reference = load_file(huggingface_hub.hf_hub_download(name, "reference_outputs.safetensors", revision=job["tag"]))
    for head in ("", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"):
        auto_class = getattr(transformers, "AutoModel" + head)
        model = auto_class.from_pretrained(name, revision=job["tag"], dtype=torch.float32, **options).eval()
        with torch.no_grad():
            output = model(reference["input_ids"], reference["attention_mask"], output_hidden_states=True)
        hidden = output.hidden_states[-1][reference["attention_mask"].bool()]
        if not head:
            report["vectors"] = list(model.embed(SEQUENCES).shape)
        report[f"AutoModel{head}"] = float((hidden - reference["last_hidden_state"]).abs().max())

    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        name, revision=job["tag"], num_labels=2, dtype=torch.float32, **options
    )
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)

    def train(steps):
        losses = []
        for _ in range(steps):
            loss = classifier(**batch, labels=torch.tensor([0, 0, 1, 1])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        return losses

    def logits(model):
        with torch.no_grad():
            return model.eval()(**batch).logits

    report["losses"] = train(6)
    first = logits(classifier)
    report["first"] = classifier.push_to_hub(job["fine_tune"], commit_message="first").oid
    tokenizer.push_to_hub(job["fine_tune"], commit_message="tokenizer")
    classifier.train()
    train(6)
    second = logits(classifier)
    report["second"] = classifier.push_to_hub(job["fine_tune"], commit_message="second").oid
    loaded = {
        revision: logits(
            transformers.AutoModelForSequenceClassification.from_pretrained(
                job["fine_tune"], revision=revision, dtype=torch.float32, **options
            )
        )
        for revision in (report["first"], "main")
    }
    report["old revision gives the old outputs"] = torch.equal(loaded[report["first"]], first)
    report["newest gives the new outputs"] = torch.equal(loaded["main"], second)
    report["they differ"] = not torch.equal(first, second)
    report["code of the fine-tune"] = sorted(
        file for file in huggingface_hub.list_repo_files(job["fine_tune"]) if file.endswith(".py")
    )
    save_file({"first": first, "second": second}, job["outputs"])
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
