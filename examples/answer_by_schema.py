"""An answer that is always the JSON you asked for.

    python examples/answer_by_schema.py

The bundled model completes Python and knows little of records; that the JSON is whole and of the right form
does not depend on it.
"""

import json

from haversack.run import Engine, Limits, Sampler, generate, json_schema

SCHEMA = {
    "type": "object",
    "properties": {
        "module": {"enum": ["json", "pathlib", "sqlite3"]},
        "functions": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z_]+$", "maxLength": 20},
            "minItems": 1,
            "maxItems": 3,
        },
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["module", "functions", "stars"],
    "additionalProperties": False,
}

with Engine.open("code", context_length=256) as engine:
    tokenizer = engine.model.tokenizer()
    for seed in range(3):
        constraint = json_schema(SCHEMA, tokenizer, engine.model.end_of_text)
        answer = generate(
            engine,
            "import json\n\nrecord = json.loads('''",
            Limits(max_tokens=60),
            Sampler(temperature=0.8, seed=seed),
            tokenizer,
            constraint,
        )
        text = "".join(token.text for token in answer)
        print(json.loads(text))
