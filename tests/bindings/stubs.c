/* What TensorRT's Python bindings want from libnvinfer, libnvinfer_plugin, libnvonnxparser and libnvparsers (8.6) before
 * they can be imported. Nothing here does anything: every factory answers NULL, so that a Builder cannot be
 * made, while the classes of the bindings, their signatures and their vtables are the real ones. */

#include <stddef.h>

#define FACTORY(name) \
    void *name(void) { return NULL; }

FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(getBuilderPluginRegistry)
FACTORY(getPluginRegistry)

int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *logger, const char *name) { (void)logger, (void)name; return 1; }

/* nvcaffeparser1::createCaffeParser(), nvcaffeparser1::shutdownProtobufLibrary(), nvuffparser::createUffParser() and
 * the constructor of nvuffparser::FieldMap, under the names that a C++ compiler gives them. */
FACTORY(_ZN14nvcaffeparser117createCaffeParserEv)
FACTORY(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
FACTORY(_ZN11nvuffparser15createUffParserEv)
FACTORY(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
