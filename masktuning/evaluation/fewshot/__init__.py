"""Few-shot prompting: a language model labels texts after some solved examples, untrained."""
