// Stand in for NVIDIA's driver library, as far as the package asks it: which GPUs a process sees. What it answers is in the environment.
//
//   DOUBLE_GPUS     how many the host has (default 1)
//   DOUBLE_DRIVER   the version of CUDA that it speaks (default 13010)
//   DOUBLE_INIT     what cuInit returns (default 0)
//
// Each may be a list, a value for each rank by its number, the last one for all others. CUDA_VISIBLE_DEVICES holds as with the real one.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static long answer(const char *name, long otherwise) {
    const char *text = std::getenv(name), *rank = std::getenv("PMI_RANK");
    if (!rank) rank = std::getenv("OMPI_COMM_WORLD_RANK");
    if (!text || !*text) return otherwise;
    for (long left = rank ? std::atol(rank) : 0; left > 0; --left) {
        const char *comma = std::strchr(text, ',');
        if (!comma) break;
        text = comma + 1;
    }
    return *text && *text != ',' ? std::atol(text) : otherwise;
}

static std::vector<int> shown() {
    std::vector<int> found;
    long n = answer("DOUBLE_GPUS", 1);
    const char *text = std::getenv("CUDA_VISIBLE_DEVICES");
    if (!text) {
        for (int i = 0; i < n; ++i) found.push_back(i);
        return found;
    }
    while (*text) {  // the first number that is none ends the list
        char *end;
        long number = std::strtol(text, &end, 10);
        if (end == text || number < 0 || number >= n) break;
        found.push_back(static_cast<int>(number));
        if (*end != ',') break;
        text = end + 1;
    }
    return found;
}

extern "C" {
int cuInit(unsigned) {
    long code = answer("DOUBLE_INIT", 0);
    return code ? static_cast<int>(code) : shown().empty() ? 100 : 0;
}
int cuDriverGetVersion(int *version) { return *version = static_cast<int>(answer("DOUBLE_DRIVER", 13010)), 0; }
int cuDeviceGetCount(int *count) { return *count = static_cast<int>(shown().size()), 0; }
int cuDeviceGet(int *device, int number) { return *device = shown()[number], 0; }
int cuDeviceGetName(char *name, int size, int device) { return std::snprintf(name, size, "Double %d", device), 0; }
int cuDeviceTotalMem_v2(size_t *nbytes, int) { return *nbytes = size_t(8) << 30, 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { return std::memset(uuid, device + 1, 16), 0; }
int cuGetErrorName(int code, const char **name) {
    *name = code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : nullptr;
    return *name ? 0 : 1;
}
}
