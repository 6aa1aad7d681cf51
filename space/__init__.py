"""The demo: a Gradio app that runs from the checkout (`make demo`) and as a Hugging Face Space."""
