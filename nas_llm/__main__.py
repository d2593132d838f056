"""`python -m nas_llm` is `nas-llm`."""

from nas_llm.cli import main

if __name__ == "__main__":
    main()
