"""Entry point of ``python -m llm_forget`` and ``accelerate launch -m llm_forget``."""

from llm_forget.cli.main import main

if __name__ == "__main__":
    main()
