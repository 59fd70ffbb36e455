/* Choosing a device for a model that is open. */
#include "infer/device.h"

#include "core/base/error.h"
#include "dist/backend.h"

int kn_device_open(const char *asked, const KnModelFile *file, KnComm *comm, KnBackend **backend)
{
    KnConfig config;
    if (asked || !file->config_yaml)
        return kn_backend_open(asked ? asked : "auto", comm, backend);
    kn_config_init(&config);
    int code = kn_model_file_config(file, &config);
    if (code == KN_OK && (code = kn_backend_open(config.run_device, comm, backend)) < 0)
        code = kn_fail_prefix(code, "the configuration in %s has run.device: %s, which --device overrides", file->path,
                              config.run_device);
    kn_config_clear(&config);
    return code;
}
