// A product of two small matrices by the Arm Compute Library; prints it, one row a line, COUNT times computed.
#include <arm_compute/runtime/NEON/NEFunctions.h>
#include <arm_compute/runtime/Tensor.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

using namespace arm_compute;

constexpr unsigned ROWS = 3, COLUMNS = 5, INNER = 4;

static float &element(Tensor &tensor, unsigned row, unsigned column) {
    return *reinterpret_cast<float *>(tensor.ptr_to_element(Coordinates(column, row)));
}

int main(int argc, char **argv) {
    const int count = argc > 1 ? std::atoi(argv[1]) : 1;
    Tensor left, right, product;
    // ACL's shapes begin with the innermost axis.
    left.allocator()->init(TensorInfo(TensorShape(INNER, ROWS), 1, DataType::F32));
    right.allocator()->init(TensorInfo(TensorShape(COLUMNS, INNER), 1, DataType::F32));
    product.allocator()->init(TensorInfo(TensorShape(COLUMNS, ROWS), 1, DataType::F32));
    NEGEMM gemm;
    gemm.configure(&left, &right, nullptr, &product, 1.0F, 0.0F);
    for (Tensor *tensor : {&left, &right, &product}) tensor->allocator()->allocate();
    for (unsigned row = 0; row < ROWS; ++row)
        for (unsigned inner = 0; inner < INNER; ++inner)
            element(left, row, inner) = static_cast<float>(row) + 0.5F * static_cast<float>(inner);
    for (unsigned inner = 0; inner < INNER; ++inner)
        for (unsigned column = 0; column < COLUMNS; ++column)
            element(right, inner, column) = static_cast<float>(inner * column) - 2.0F;
    for (int run = 0; run < count; ++run) gemm.run();
    for (unsigned row = 0; row < ROWS; ++row) {
        for (unsigned column = 0; column < COLUMNS; ++column) std::printf("%g ", element(product, row, column));
        std::printf("\n");
    }
    return 0;
}
