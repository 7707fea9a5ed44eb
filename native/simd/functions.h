// tanh, erf and the logistic function on 16 lanes, from polynomials fitted for this file (minimax, in f64, rounded to f32).
#pragma once
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {

// tanh v, error below 2 units in the last place. Near 0 an odd polynomial, else 1 - 2 / (e^(2 |v|) + 1).
HAVERSACK_INLINE Floats tanh(Floats v) {
    const Floats size = abs(v), square = v * v;
    Floats p = set(-5.7049841e-3f);
    p = fma(p, square, set(2.0639084e-2f));
    p = fma(p, square, set(-5.3739715e-2f));
    p = fma(p, square, set(1.3331442e-1f));
    p = fma(p, square, set(-3.3333281e-1f));
    const Floats near = fma(p * square, v, v);
    const Floats far = set(1.0f) - set(2.0f) / (exp(size + size) + set(1.0f));
    const Floats signed_far = select(less(v, zero()), zero() - far, far);
    return select(less(set(0.625f), size), signed_far, near);  // NaN takes the polynomial and stays NaN
}

// erf v, error below 2 units in the last place. Below 1 an odd polynomial, else 1 - e^-q(|v|), q fitted to -ln(1 - erf).
HAVERSACK_INLINE Floats erf(Floats v) {
    const Floats size = abs(v), square = v * v;
    Floats p = set(-9.6415187e-6f);
    p = fma(p, square, set(1.1256949e-4f));
    p = fma(p, square, set(-8.4828289e-4f));
    p = fma(p, square, set(5.2209455e-3f));
    p = fma(p, square, set(-2.6865400e-2f));
    p = fma(p, square, set(1.1283782e-1f));
    p = fma(p, square, set(-3.7612638e-1f));
    p = fma(p, square, set(1.2837923e-1f));
    const Floats near = fma(p, v, v);
    const Floats t = min(size, set(4.0f));
    Floats q = set(2.1697590e-5f);
    q = fma(q, t, set(-4.4147234e-4f));
    q = fma(q, t, set(4.2052828e-3f));
    q = fma(q, t, set(-2.5210334e-2f));
    q = fma(q, t, set(1.0842209e-1f));
    q = fma(q, t, set(6.3321638e-1f));
    q = fma(q, t, set(1.1295803f));
    q = fma(q, t, set(-1.8846660e-4f));
    const Floats far = set(1.0f) - exp(zero() - q);
    const Floats signed_far = select(less(v, zero()), zero() - far, far);
    return select(less(set(1.0f), size), signed_far, near);
}

// v / (1 + e^-w): silu for w = v.
HAVERSACK_INLINE Floats gated_by_logistic(Floats v, Floats w) { return v / (set(1.0f) + exp(zero() - w)); }

}  // namespace haversack::HAVERSACK_TARGET
