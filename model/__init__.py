"""Networks, gathering of embeddings, objectives and methods.

One capital per axis, as a suffix of a tensor's name: `z_VAD` is [V, A, D].

    V views    B samples on this rank    A samples on all ranks    N rows: V · B, gathered V · A
    C H W image    F feature size    D embedding size
    Q queries    G gallery rows    K short list: positives, neighbours, classes
"""
