"""`python -m nanochat_apps <program>`, for those that start Python themselves, such as torchrun."""

from nanochat_apps.nanochat import main

if __name__ == "__main__":
    main()
