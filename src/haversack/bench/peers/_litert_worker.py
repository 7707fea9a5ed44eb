"""Runs inside the peer's own environment: LiteRT's interpreter with its reference kernels. Never imported by
the package.

    python -P _litert_worker.py MODEL INPUTS.npy OUTPUTS.npy

No delegate, one thread, one row after the other, codes (or floats) as the model has them.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def main(model: str, inputs: str, outputs: str) -> None:
    rows = np.load(inputs, allow_pickle=False)
    interpreter = Interpreter(
        model_path=model, num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    source, goal = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = []
    for row in rows:
        interpreter.set_tensor(source["index"], row.reshape(source["shape"]).astype(source["dtype"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(goal["index"]).reshape(-1).copy())
    np.save(outputs, np.array(found))


main(*sys.argv[1:])
