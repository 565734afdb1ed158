"""Byte-pair tokenizer and chat format of nanochat: text to token ids, conversations to ids and loss masks."""
