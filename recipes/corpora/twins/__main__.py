"""``python -m recipes.corpora.twins``, see `recipes.corpora.twins.generation`."""

from recipes.corpora.twins import main

if __name__ == "__main__":
    main()
