"""From sequences to numbers with a trained model: embed, predict, score variants; one runnable module each."""
