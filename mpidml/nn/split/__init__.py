"""Cut a network's layers over the ranks of a line, so that each holds a part of every weight and computes a part of every product.

    one pair of dense layers, 3 ranks (Shoeybi et al., Megatron-LM, 2019)

    x, whole  ->  A by columns  ->  f, dropout  ->  B by rows  ->  sum  ->  bias, g  ->  whole
                  | A0 A1 A2 |      own columns     | B0 |        the one of the forward pass
                                                    | B1 |
    sum of dx  <-  d A^T, partial   <-              | B2 |   <-  d, whole
    the one of the backward pass

A layer never computes, it lists kernel calls, and a sum over the line is one more call in its list. So a part of a layer is a `Layer` like any
other, with tensors of its own shapes, and whoever runs layers runs parts.

    line      what is asked of the ranks: how a width is cut, sums and largest values. It is handed in: this folder knows no MPI
    ways      how each layer is cut, so that the fewest elements are summed, and what needs whole rows gets them
    part      what is common to parts; dense, dropout, embedding: the parts
    draws     the initial weights of a part, the same bits as in the whole, which nobody ever holds
    loss      the cross entropy of outputs that are cut by columns, and any loss of whole ones, with one face
    layout    a rank's flat weights within the flat weights of the whole network
    traffic   what a pass sums, in elements and bytes
    chain     all of it for one chain of layers
    whole     all of it for a network, heads and all

Where the ranks of a line share out a batch, parts of some layers stand among whole ones, and every rank's x and out are its own rows:

    spread    rows of a batch that are gathered, and what goes back to the rank whose rows they are; spread_dense, spread_embedding: the parts
    mix       which layers those are

Whether an array is whole or a part is known between any two layers: whole arrays are alike on all ranks, to the bit, and so are the gradients of
tensors that every rank holds (the bias behind a sum, the layers that stay whole).
"""
