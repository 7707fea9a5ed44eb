// What is kept on the phone: IndexedDB, behind five verbs.

export type Store = "kv" | "ring" | "clips" | "files";
const NAME = "haversack", VERSION = 1;

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("the phone's storage failed"));
  });
}

export class Database {
  private constructor(private readonly db: IDBDatabase) {}

  static async open(): Promise<Database> {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      for (const store of ["kv", "ring", "clips", "files"] satisfies Store[]) request.result.createObjectStore(store);
    };
    return new Database(await done(request));
  }

  get<T>(store: Store, key: IDBValidKey): Promise<T | undefined> {
    return done(this.db.transaction(store).objectStore(store).get(key) as IDBRequest<T | undefined>);
  }

  all<T>(store: Store): Promise<T[]> {
    return done(this.db.transaction(store).objectStore(store).getAll() as IDBRequest<T[]>);
  }

  /** Writes and removals, all of them or none, on the disk when it resolves. */
  change(stores: Store[], body: (at: (store: Store) => IDBObjectStore) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const change = this.db.transaction(stores, "readwrite", { durability: "strict" });
      change.oncomplete = () => resolve();
      change.onerror = change.onabort = () => reject(change.error ?? new Error("the phone's storage failed"));
      body((store) => change.objectStore(store));
    });
  }

  put(store: Store, key: IDBValidKey, value: unknown): Promise<void> {
    return this.change([store], (at) => void at(store).put(value, key));
  }

  /** Everything that this app holds on this phone. */
  wipe(): Promise<void> {
    return this.change(["kv", "ring", "clips", "files"], (at) => {
      for (const store of ["kv", "ring", "clips", "files"] satisfies Store[]) at(store).clear();
    });
  }
}
