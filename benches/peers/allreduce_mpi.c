/* A peer of `cargo xtask bench comm`: all-reduce of f32 sums by MPI.
 *
 *     mpicc -O3 -march=native -o allreduce_mpi allreduce_mpi.c && mpirun -np WORLD ./allreduce_mpi
 *
 * Rank 0 reads the name of a size from stdin and answers with the microseconds of one call on the slowest rank, the
 * median of its repeats. Between the cases the other ranks sleep and look, so that they use no processor.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REPEATS = 5, PARTS = 3 };

static const struct {
    const char *name;
    long parts[PARTS];
    int calls;
} SIZES[] = {
    {"1KB", {1 << 10}, 2000},
    {"64KB", {1 << 16}, 500},
    {"1MB", {1 << 20}, 60},
    {"16MB", {16 << 20}, 5},
    {"100MB", {100000000}, 1},
    {"resnet18", {2052000, 28852224, 15853824}, 2},
};

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double measure(int size) {
    float *data[PARTS];
    for (int p = 0; p < PARTS; p++) {
        long n = SIZES[size].parts[p] / 4;
        data[p] = n ? malloc(n * 4) : NULL;
        for (long i = 0; i < n; i++) data[p][i] = 1e-30f;
    }
    double times[REPEATS];
    for (int repeat = -2; repeat < REPEATS; repeat++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double began = MPI_Wtime();
        for (int call = 0; call < SIZES[size].calls; call++)
            for (int p = 0; p < PARTS; p++)
                if (data[p])
                    MPI_Allreduce(MPI_IN_PLACE, data[p], SIZES[size].parts[p] / 4, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        double own = (MPI_Wtime() - began) / SIZES[size].calls * 1e6, slowest;
        MPI_Allreduce(&own, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        if (repeat >= 0) times[repeat] = slowest;
    }
    for (int p = 0; p < PARTS; p++) free(data[p]);
    qsort(times, REPEATS, sizeof *times, ascending);
    return times[REPEATS / 2];
}

/* The next size, or -1 at the end: rank 0 knows it, the others sleep until it is told. */
static int next_size(int rank) {
    int size = -1;
    char line[64];
    if (rank == 0 && fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = 0;
        for (unsigned i = 0; i < sizeof SIZES / sizeof *SIZES; i++)
            if (!strcmp(line, SIZES[i].name)) size = i;
    }
    MPI_Request told;
    int done = 0;
    MPI_Ibcast(&size, 1, MPI_INT, 0, MPI_COMM_WORLD, &told);
    while (MPI_Test(&told, &done, MPI_STATUS_IGNORE), !done) usleep(2000);
    return size;
}

int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    while ((size = next_size(rank)) >= 0) {
        double us = measure(size);
        if (rank == 0) {
            printf("%.3f\n", us);
            fflush(stdout);
        }
    }
    MPI_Finalize();
    return 0;
}
